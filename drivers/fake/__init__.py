"""Driver `fake`: volumes that are only records, for tests, benchmarks and rehearsals (docs/drivers/fake.md)."""

from cinderblock.drivers.fake.config import FakeConfig, Fault, FaultMoment, Verb
from cinderblock.drivers.fake.driver import FakeDriver
from cinderblock.drivers.fake.state import FakeState

__all__ = ["FakeConfig", "FakeDriver", "FakeState", "Fault", "FaultMoment", "Verb"]
