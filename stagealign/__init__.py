"""stagealign: which data does a policy need next, off-policy or on-policy?"""

from typing import TYPE_CHECKING, Any

from stagealign.base.version import __version__

if TYPE_CHECKING:
    from stagealign.boundary.measure import measure_boundary

__all__ = ["__version__", "measure_boundary"]


def __getattr__(name: str) -> Any:
    """`measure_boundary`, imported on first use so that `import stagealign` stays light."""
    if name == "measure_boundary":
        from stagealign.boundary.measure import measure_boundary

        return measure_boundary
    raise AttributeError(f"module 'stagealign' has no attribute {name!r}")
