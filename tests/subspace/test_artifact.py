import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from routed_rl.artifacts import sealed_folder
from routed_rl.errors import CheckFailed, RunFolderError, SubspaceError
from routed_rl.linalg import random_basis
from routed_rl.subspace import Provenance, Subspace

WIDTH, LAYERS = 12, 2


def make(**changes) -> Subspace:
    generator = torch.Generator().manual_seed(0)
    values = dict(directions=[random_basis(WIDTH, rank, generator) for rank in (3, 2)],
                  axes=[random_basis(WIDTH, 2, generator) for _ in range(LAYERS)],
                  axis_names=["persona", "component_1"],
                  scales=torch.rand(LAYERS, 2) + 0.1, units=torch.rand(LAYERS) + 0.1,
                  stream=torch.randn(LAYERS, 5, WIDTH),
                  provenance=Provenance("pca", "folder", "a" * 64, WIDTH, LAYERS, 3, "p.jsonl", "b", {"pairs": 4}),
                  quality={"pairs": 4, "layers": [{"auroc": None}]})
    return Subspace(**(values | changes))


def test_save_then_load_is_the_identity(tmp_path):
    subspace = make()
    subspace.save(tmp_path / "s")
    loaded = Subspace.load(tmp_path / "s")
    for one, other in [*zip(loaded.directions, subspace.directions, strict=True),
                       *zip(loaded.axes, subspace.axes, strict=True), (loaded.scales, subspace.scales),
                       (loaded.units, subspace.units), (loaded.stream, subspace.stream)]:
        assert torch.equal(one, other)
    assert (loaded.axis_names, loaded.provenance, loaded.quality) == (
        subspace.axis_names, subspace.provenance, subspace.quality)


def test_an_empty_basis_survives_the_disk(tmp_path):
    make(directions=[torch.zeros(WIDTH, 0)] * LAYERS).save(tmp_path / "s")
    assert Subspace.load(tmp_path / "s").directions[1].shape == (WIDTH, 0)


@pytest.mark.parametrize("file", ["subspace.safetensors", "subspace.json", "COMPLETE.json"])
def test_a_torn_file_is_refused_by_name(tmp_path, file):
    make().save(tmp_path / "s")
    whole = (tmp_path / "s" / file).read_bytes()
    (tmp_path / "s" / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SubspaceError, match=file):
        Subspace.load(tmp_path / "s")


def test_a_missing_folder_or_file_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(SubspaceError, match=r"no such folder.*routed-rl extract"):
        Subspace.load(tmp_path / "none")
    make().save(tmp_path / "s")
    (tmp_path / "s" / "subspace.json").unlink()
    with pytest.raises(SubspaceError, match=r"subspace\.json is missing"):
        Subspace.load(tmp_path / "s")


def test_a_write_that_fails_leaves_the_former_subspace_whole(tmp_path):
    make().save(tmp_path / "s")
    with pytest.raises(CheckFailed, match="quality.auroc=nan is not finite"):
        make(quality={"auroc": float("nan")}).save(tmp_path / "s")
    assert Subspace.load(tmp_path / "s").quality == make().quality
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_subspace_replaces_nothing_but_a_subspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        make().save("s")
    (tmp_path / "s" / "check.json").write_text("measured")
    (tmp_path / "run").write_text("a file")
    for place in ("s", "run", ".", tmp_path):
        with pytest.raises(RunFolderError, match=r"subspace.save\('.*'\) would replace what is there; give a folder"):
            make().save(place)
    with pytest.raises(RunFolderError, match="cannot be made: .* is no folder"):
        make().save("run/s")
    assert (tmp_path / "s" / "check.json").read_text() == "measured" and (tmp_path / "run").read_text() == "a file"


def test_its_own_model_is_accepted_and_another_is_refused_with_the_reason():
    subspace = make()
    subspace.check_model(model="moved", model_hash="a" * 64, width=WIDTH, layers=LAYERS)
    with pytest.raises(SubspaceError, match=r"extracted from folder \(weights aaaaaaaaaaaa\), not from new"):
        subspace.check_model(model="new", model_hash="c" * 64, width=WIDTH, layers=LAYERS)
    with pytest.raises(SubspaceError, match="2 layers of width 12 but new has 2 of width 16"):
        subspace.check_model(model="new", model_hash="a" * 64, width=16, layers=LAYERS)
    with pytest.raises(SubspaceError, match="2 layers of width 12 but new has 3 of width 12"):
        subspace.check_model(model="new", model_hash="a" * 64, width=WIDTH, layers=3)


def test_what_no_routing_could_use_is_refused():
    with pytest.raises(SubspaceError, match="rank 13, more than the stream's width 12"):
        make(directions=[torch.zeros(WIDTH, 13)] * LAYERS)
    with pytest.raises(SubspaceError, match="not orthonormal"):
        make(directions=[torch.ones(WIDTH, 2)] * LAYERS)
    for broken in (torch.zeros(LAYERS, 2), torch.full((LAYERS, 2), float("nan"))):
        with pytest.raises(SubspaceError, match="scale"):
            make(scales=broken)


def test_nothing_of_it_can_be_reassigned():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().units = torch.ones(LAYERS)  # pyright: ignore


NAN, INF = float("nan"), float("inf")


def changed(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[(0,) * tensor.ndim] = value
    return tensor


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", ["directions", "axes", "scales", "units", "stream", "spreads"])
def test_numbers_that_are_not_finite_are_refused_by_name(name, value):
    whole = make(spreads=[torch.ones(3), torch.ones(2)])
    of = getattr(whole, name)
    broken = [of[0], changed(of[1], value)] if isinstance(of, list) else changed(of, value)
    with pytest.raises(SubspaceError, match=rf"the subspace's {name}.* nan or infinite"):
        make(spreads=whole.spreads, **{name: broken}) if name != "spreads" else make(spreads=broken)


@pytest.mark.parametrize(("changes", "message"), [
    ({"units": torch.tensor([1.0, -1.0])}, "not positive"), ({"scales": torch.zeros(LAYERS, 2)}, "scale"),
    ({"units": torch.ones(1)}, "units: the shape"), ({"scales": torch.ones(LAYERS, 3)}, "scales: the shape"),
    ({"directions": [torch.eye(WIDTH)[:, :2]]}, "directions of 1 layers"),
    ({"axes": [torch.eye(WIDTH)[:, :2]]}, "axes of 1 layers"),
    ({"directions": [torch.eye(WIDTH + 1)[:, :2]] * LAYERS}, "directions of layer 0: the shape"),
    ({"directions": [torch.eye(WIDTH)[:, :2].half()] * LAYERS}, "float16, not float32"),
    ({"directions": [torch.eye(WIDTH, dtype=torch.int64)[:, :2]] * LAYERS}, "int64, not float32"),
    ({"axes": [torch.eye(WIDTH)[:, :2] * 2] * LAYERS}, "another length than 1"),
    ({"axis_names": ["a", "a"]}, "names that differ"),
    ({"axis_names": ["a/b", "c"]}, "have no '/'"), ({"spreads": [torch.ones(3)]}, "spreads of 1 layers")])
def test_a_subspace_that_does_not_hang_together_is_refused(changes, message):
    with pytest.raises(SubspaceError, match=message):
        make(**changes)


@pytest.mark.parametrize("key", ["units", "directions.1", "axes.0"])
def test_a_tensor_that_is_missing_from_a_sealed_folder_is_refused(tmp_path, key):
    make().save(tmp_path / "s")
    tensors = load_file(tmp_path / "s" / "subspace.safetensors")
    with sealed_folder(tmp_path / "t") as folder:
        save_file({name: value for name, value in tensors.items() if name != key}, folder / "subspace.safetensors")
        (folder / "subspace.json").write_bytes((tmp_path / "s" / "subspace.json").read_bytes())
    with pytest.raises(SubspaceError, match=key.split(".")[0]):
        Subspace.load(tmp_path / "t")


WHOLE = {"method": "pca", "model": "m", "model_hash": "h", "width": WIDTH, "layers": LAYERS, "rank": None, "prompts": "",
         "prompts_hash": "", "details": {}}


@pytest.mark.parametrize("record", [
    "[]", "null", '"x"', "5", "{", "[" * 5000, '{"provenance": {}}', '{"provenance": [], "axis_names": [], "quality": {}}', *(
        json.dumps({"provenance": WHOLE, "axis_names": ["a", "b"], "quality": {}} | change) for change in (
            {"axis_names": "ab"}, {"axis_names": [1, 2]}, {"quality": []}, {"quality": None},
            {"provenance": WHOLE | {"layers": "2"}}, {"provenance": WHOLE | {"layers": 10**30}}, {"provenance": WHOLE | {"x": 1}},
            {"provenance": WHOLE | {"details": 3}}))])
def test_a_sealed_folder_whose_record_is_anything_is_refused_in_one_line(tmp_path, record):
    make().save(tmp_path / "s")
    with sealed_folder(tmp_path / "t") as folder:
        (folder / "subspace.safetensors").write_bytes((tmp_path / "s" / "subspace.safetensors").read_bytes())
        (folder / "subspace.json").write_text(record)
    with pytest.raises(SubspaceError) as caught:
        Subspace.load(tmp_path / "t")
    assert "\n" not in str(caught.value)


def test_a_layer_counts_by_how_well_its_axis_separates_and_one_that_does_not_counts_nothing():
    found = [make(quality={"layers": [{"auroc": value} for value in auroc]}).layer_weights().tolist()
             for auroc in ((0.75, 1.0), (0.5, 0.75), (0.3, 1.0), (None, 0.75), (0.4, 0.5), (None, None))]
    assert found == [[0.5, 1.0], [0.0, 0.5], [0.0, 1.0], [0.0, 0.5], [1.0, 1.0], [1.0, 1.0]]
    assert make(quality={}).layer_weights().tolist() == [1.0, 1.0]


def test_a_layer_counts_for_each_axis_by_how_well_that_axis_separates_and_by_the_first_where_it_was_not_measured():
    first, other = make().axis_names[:2]
    layers = [{"auroc": 0.75}, {"auroc": 1.0}]
    measured = {"layers": [{"auroc": {first: 0.9, other: value}} for value in (1.0, 0.6)]}
    found = make(quality={"layers": layers, "axes": measured})
    torch.testing.assert_close(found.layer_weights(other), torch.tensor([1.0, 0.2]))
    assert found.layer_weights(first).tolist() == found.layer_weights().tolist() == [0.5, 1.0]
    assert make(quality={"layers": layers}).layer_weights(other).tolist() == [0.5, 1.0]
    lacking = [torch.cat([axes[:, :1], 0 * axes[:, 1:]], 1) if layer else axes for layer, axes in enumerate(make().axes)]
    assert make(quality={"layers": layers}, axes=lacking).layer_weights(other).tolist() == [0.5, 0.0]
    assert [found.measures(other), make(quality={"layers": layers}).measures(other)] == [True, False]


def test_a_layer_without_the_persona_axis_counts_nothing_whatever_was_measured():
    own = make().axes
    without = [torch.zeros_like(own[0]), own[1]]
    for measured in ([], [None, None], [0.4, 0.5], [0.9, 0.5]):
        quality = {"layers": [{"auroc": value} for value in measured]}
        assert make(quality=quality, axes=without).layer_weights().tolist() == [0.0, 1.0]
    assert make(quality={}, axes=[without[0]] * LAYERS).layer_weights().tolist() == [1.0, 1.0], "there is no shift to weigh"
