__version__ = "0.1.0"

from .base.moved import lead_old_imports
lead_old_imports()
