"""Strangers' plug-ins in the process that they share with regframe and with each other.

``faults`` calls their errors by their names; ``state`` puts back what they change for everybody; ``files`` loads
a class out of a single Python file; ``doors`` finds what packages add by name alone, such as commands.
"""

from .faults import (
    PluginFault,
    claim,
    claim_package,
    fault_of,
    forget,
    named,
    noting,
    provider_of,
    returned,
    slip_of,
    versions_of,
    words,
)
from .files import absolute, in_file, load
from .state import restored

__all__ = [
    "PluginFault",
    "absolute",
    "claim",
    "claim_package",
    "fault_of",
    "forget",
    "in_file",
    "load",
    "named",
    "noting",
    "provider_of",
    "restored",
    "returned",
    "slip_of",
    "versions_of",
    "words",
]
