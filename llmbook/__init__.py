__version__ = "0.1.0"

from .base.threads import set_up_threads
set_up_threads()  # before torch is loaded

from .base.docstrings import explain_parameters
from .base.moved import lead_old_imports
explain_parameters()
lead_old_imports()
