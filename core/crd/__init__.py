"""CRDs and their pages, made from the models of core.api, so that schema, documentation and code cannot drift."""
