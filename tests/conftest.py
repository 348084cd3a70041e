"""Every annotated shape and type of the package is checked while the tests run; no test fails for being slow."""

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("segadapt", "beartype.beartype")
settings.register_profile("without a deadline", deadline=None)
settings.load_profile("without a deadline")
