import dataclasses

import pytest
import torch

from routed_rl.errors import SubspaceError
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
    with pytest.raises(ValueError):
        make(quality={"auroc": float("nan")}).save(tmp_path / "s")
    assert Subspace.load(tmp_path / "s").quality == make().quality
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


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
