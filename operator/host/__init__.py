"""The volume host: makes, exports, grows and deletes what the leader granted to the pools of one host."""
