"""The same few images as the engine's tests train on."""

from tests.engine.conftest import packed

__all__ = ["packed"]
