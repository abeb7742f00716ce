"""Driver `file`: sparse image files in a folder of a node (docs/drivers/file.md)."""

from cinderblock.drivers.file.config import FileConfig, PoolImage
from cinderblock.drivers.file.driver import FileDriver

__all__ = ["FileConfig", "FileDriver", "PoolImage"]
