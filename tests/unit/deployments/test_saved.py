"""The models of a server in a file: what is written is read again, and what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vit_api.deployments.listing import Deployment, load_deployments
from vit_api.deployments.saved import ModelState, ModelStateError

_LISTED = load_deployments('[{"name": "a", "version": "1", "model": "digits"}]')
_LOADED = load_deployments(
    '[{"name": "a", "version": "1", "model": "digits", "traffic": 25}, '
    '{"name": "a", "version": "2", "model": "/m", "traffic": 75, "thresholds": {"cat": 0.5}}]'
)


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    """With every field, in its order; by another process with the same list."""
    folder = tmp_path / "new" / "folder"
    assert ModelState(str(folder), _LISTED).read() is None
    ModelState(str(folder), _LISTED).save(_LOADED)
    kept = ModelState(str(folder), _LISTED).read()
    assert kept is not None
    assert load_deployments(kept) == _LOADED


def test_a_changed_list_counts(tmp_path: Path) -> None:
    """What was loaded before it was changed does not."""
    ModelState(str(tmp_path), _LISTED).save(_LOADED)
    other: tuple[Deployment, ...] = load_deployments('[{"name": "a", "version": "9", "model": "digits"}]')
    state = ModelState(str(tmp_path), other)
    assert state.read() is None
    assert state.is_outdated()
    assert not ModelState(str(tmp_path), _LISTED).is_outdated()


def test_a_crash_while_it_is_written_leaves_the_old_file(tmp_path: Path) -> None:
    """Half of a new file is beside it."""
    state = ModelState(str(tmp_path), _LISTED)
    state.save(_LOADED)
    (tmp_path / "models.new").write_text('{"format": 1, "li')
    assert state.read() is not None
    state.save(_LISTED)
    assert load_deployments(state.read() or "") == _LISTED


@pytest.mark.parametrize("length", [0, 1, 10, 60, 150])
def test_a_damaged_file_is_refused(tmp_path: Path, length: int) -> None:
    """With a line that says where it is and what to do."""
    state = ModelState(str(tmp_path), _LISTED)
    state.save(_LOADED)
    path = tmp_path / "models.json"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelStateError, match=r"models.json is damaged .* remove it"):
        state.read()


@pytest.mark.parametrize(
    "models",
    [
        pytest.param([], id="none"),
        pytest.param([{"name": "a"}], id="incomplete"),
        pytest.param([{"name": "a", "version": "1", "model": "m", "traffic": 30}], id="traffic"),
        pytest.param("a", id="text"),
    ],
)
def test_models_that_can_not_be_served_are_refused(tmp_path: Path, models: object) -> None:
    """As in the setting."""
    state = ModelState(str(tmp_path), _LISTED)
    state.save(_LOADED)
    path = tmp_path / "models.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"models": models}))
    if models == [{"name": "a", "version": "1", "model": "m", "traffic": 30}]:
        with pytest.raises(ModelStateError, match="percent together"):
            state.read()
    else:
        with pytest.raises(ModelStateError, match="damaged"):
            state.read()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    """Of a later version of this server."""
    state = ModelState(str(tmp_path), _LISTED)
    state.save(_LOADED)
    path = tmp_path / "models.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(ModelStateError, match="has the format 2"):
        state.read()
