"""The list of models: what is accepted, and errors that name the entry and the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vit_api.deployments.listing import Deployment, DeploymentsError, load_deployments, mirrors_of

_ONE = {"name": "a", "version": "1", "model": "digits"}


def _load(*entries: Any) -> tuple[Deployment, ...]:
    return load_deployments(json.dumps(entries))


def test_a_file_is_read_as_its_text(tmp_path: Path) -> None:
    """A mark at its start, as some editors write it, is ignored."""
    file = tmp_path / "models.json"
    file.write_text(json.dumps([_ONE]), encoding="utf-8-sig")
    assert load_deployments(str(file)) == _load(_ONE)


def test_the_only_version_of_a_model_has_all_its_traffic() -> None:
    """A version may be a number, as in Triton."""
    (one,) = _load(_ONE | {"version": 3})
    assert (one.version, one.traffic) == ("3", 100)


def test_a_version_without_traffic_gets_none() -> None:
    """A name may be that of a hub model; each model's versions are counted for themselves."""
    first, second, third = _load(_ONE | {"traffic": 100}, _ONE | {"version": "2"}, _ONE | {"name": "google/vit"})
    assert [first.traffic, second.traffic, third.traffic] == [100, 0, 100]


def test_thirds_of_the_traffic() -> None:
    """Percentages with two decimals make 100 together, whatever their sum in binary is."""
    shares = [33.33, 33.33, 33.34]
    found = _load(*(_ONE | {"version": str(number), "traffic": share} for number, share in enumerate(shares)))
    assert [one.traffic for one in found] == shares


def test_thresholds_may_be_an_object() -> None:
    """They are kept as the setting VIT_API_THRESHOLDS has them."""
    (one,) = _load(_ONE | {"thresholds": {"7": 0.5}, "categories": {"7": "violence"}})
    assert (one.thresholds, one.categories) == ('{"7": 0.5}', '{"7": "violence"}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("[]", "Input should be a list of JSON such as", id="empty"),
        pytest.param('{"name": "a"}', "Input should be a list of JSON such as", id="an object"),
        pytest.param("[1]", "Model 1 of the list is not an object such as", id="no object in it"),
        pytest.param("[{]", "The JSON is malformed: Expecting property name", id="malformed"),
        pytest.param("/no/such/file", "or the path of a file with it (No such file or directory)", id="no file"),
        pytest.param('[{"name": "a", "name": "b"}]', "The JSON has 'name' more than once in one object", id="repeated"),
    ],
)
def test_text_that_is_no_list(text: str, message: str) -> None:
    """The error says what is expected."""
    with pytest.raises(DeploymentsError) as caught:
        load_deployments(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"version": None}, "(a None), 'version': Input should be a valid string, not None", id="null"),
        pytest.param({"worker_per_device": 2}, "Did you mean 'workers_per_device'?", id="slip"),
        pytest.param({"zzz": 2}, "a field 'zzz', which is unknown. The fields are name, version, model", id="unknown"),
        pytest.param({"mirror": 5}, "Did you mean 'mirror_traffic'?", id="slip of two words"),
        pytest.param({"mirror_traffic": 101}, "'mirror_traffic': Input should be less than or", id="mirrored traffic"),
        pytest.param({"mirror_traffic": 0.001}, "'mirror_traffic': Input should have at most 2", id="its decimals"),
        pytest.param({"name": "a b"}, "'name': String should match pattern", id="name"),
        pytest.param({"name": "a/versions/1"}, "No part of a name should be 'versions'", id="name like a path"),
        pytest.param({"version": "1/2"}, "'version': String should match pattern", id="version"),
        pytest.param({"version": True}, "'version': Input should be a valid string, not True", id="version is true"),
        pytest.param({"model": ""}, "'model': String should have at least 1 character", id="model"),
        pytest.param({"model": "m" * 5000}, "'model': String should have at most 4096 characters", id="long model"),
        pytest.param({"dtype": "int4"}, "'dtype': Input should be 'auto', 'float32'", id="dtype"),
        pytest.param({"max_batch_size": 0}, "'max_batch_size': Input should be greater than or equal to 1", id="batch"),
        pytest.param({"workers_per_device": "2"}, "'workers_per_device': Input should be a valid integer", id="text"),
        pytest.param({"traffic": 101}, "'traffic': Input should be less than or equal to 100", id="traffic"),
        pytest.param({"traffic": 33.333}, "'traffic': Input should have at most 2 decimals", id="decimals"),
        pytest.param({"traffic": 60}, "should be 100 percent together, not 60 (1: 60)", id="not all of the traffic"),
        pytest.param({"thresholds": {"7": 5}}, "The threshold of '7' should be a number from 0 to 1", id="thresholds"),
        pytest.param({"categories": {"7": "x"}}, "'categories': The label '7' has no category of OpenAI's", id="map"),
    ],
)
def test_an_invalid_entry(changes: dict[str, Any], message: str) -> None:
    """The error names the entry and the field."""
    with pytest.raises(DeploymentsError) as caught:
        _load(_ONE | changes)
    assert message in str(caught.value)
    assert (
        "Model 1 of the list (a" in str(caught.value)
        or "of the versions of 'a'" in str(caught.value)
        or ("name" in changes)
    )


def test_a_missing_field() -> None:
    """Also of an entry that is not the first."""
    with pytest.raises(DeploymentsError, match=r"Model 2 of the list \(b\) has no 'version'"):
        _load(_ONE, {"name": "b", "model": "digits"})


def test_one_version_twice() -> None:
    """A number and a text are the same version."""
    with pytest.raises(DeploymentsError, match="'a 1' is there more than once"):
        _load(_ONE | {"traffic": 50}, _ONE | {"version": 1, "traffic": 50})


def test_traffic_that_is_not_all_of_it() -> None:
    """With several versions, nothing is guessed."""
    with pytest.raises(DeploymentsError, match=r"of 'a' should be 100 percent together, not 0 \(1: 0, 2: 0\)"):
        _load(_ONE, _ONE | {"version": "2"})


def test_too_many() -> None:
    """Each has workers of its own."""
    with pytest.raises(DeploymentsError, match="at most 16 versions of models, not 17"):
        _load(*(_ONE | {"name": f"m{number}"} for number in range(17)))


def test_a_mirror_has_no_traffic_and_is_no_version_of_the_split() -> None:
    """The only other version still has all the traffic; a mirror with none of it mirrors nothing."""
    first, mirror = _load(_ONE, _ONE | {"version": "2", "mirror_traffic": 50})
    assert (first.traffic, mirror.traffic, mirror.mirror_traffic) == (100, 0, 50)
    _, off = _load(_ONE | {"traffic": 100}, _ONE | {"version": "2", "mirror_traffic": 0})
    assert not off.mirror_traffic
    assert mirrors_of([first, off]) == {}


def test_a_mirror_is_of_its_own_models_versions_with_traffic() -> None:
    """One without clients answers none that are worth a comparison."""
    listed = _load(
        _ONE | {"version": "2", "mirror_traffic": 50},
        _ONE | {"traffic": 90},
        {"name": "b", "version": "1", "model": "digits"},
        _ONE | {"version": "3", "traffic": 10},
        _ONE | {"version": "4"},
    )
    assert mirrors_of(listed) == {1: 0, 3: 0}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        pytest.param([], "'a 2' has 'mirror_traffic', but 'a' has no other version", id="nothing to mirror"),
        pytest.param(
            [{"name": "b", "version": "1", "model": "digits"}], "but 'a' has no other version", id="another model"
        ),
        pytest.param(
            [_ONE, _ONE | {"version": "3", "mirror_traffic": 5}],
            "Only one version of 'a' can have 'mirror_traffic', not 2",
            id="two mirrors",
        ),
        pytest.param(
            [_ONE | {"version": "3", "traffic": 40}, _ONE],
            "'traffic' of the versions of 'a' should be 100 percent together, not 40 (3: 40, 1: 0)",
            id="not all of the traffic",
        ),
    ],
)
def test_an_impossible_mirror(others: list[Any], message: str) -> None:
    """The error says which version it is."""
    with pytest.raises(DeploymentsError) as caught:
        _load(_ONE | {"version": "2", "mirror_traffic": 5}, *others)
    assert message in str(caught.value)


def test_a_mirror_with_traffic() -> None:
    """Its clients' images would be mirrored to itself."""
    with pytest.raises(DeploymentsError, match="'a 2' has 'mirror_traffic' and 'traffic'"):
        _load(_ONE | {"traffic": 50}, _ONE | {"version": "2", "traffic": 50, "mirror_traffic": 5})
