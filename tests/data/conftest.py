import pytest

from prune_env.data import source, sources


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of decoded images, a new one for each test; what the process has read before is forgotten."""
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PRUNE_ENV_DATA", raising=False)
    sources.forget()
    source.tell.cache_clear()
    return tmp_path / "cache" / "decoded"
