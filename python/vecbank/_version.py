"""The one place that holds the version; setup reads it as text, CMake too, so it must stay a plain literal."""

__version__ = "0.1.0"
