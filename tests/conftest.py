"""Every annotated shape and type of the package is checked while the tests run; no test fails for being slow."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("segadapt", "beartype.beartype")
settings.register_profile("without a deadline", deadline=None)
settings.load_profile("without a deadline")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As each of two processes has it; with more threads torch adds in another order, and rounds otherwise."""
    from segadapt.studies.jobs import threads_of  # after the hook

    with threads_of(1):
        yield
