from __future__ import annotations

from pathlib import Path

import pytest

from gatefx.errors import ArtifactError
from gatefx.tools.demo_folder import MARKER, choose_folder, staged


def demo_at(path: Path) -> Path:
    path.mkdir()
    (path / MARKER).write_text("{}")
    return path


def test_a_second_run_takes_the_next_number(tmp_path: Path) -> None:
    default = tmp_path / "demo"
    assert choose_folder(None, default, overwrite=False) == default
    demo_at(default)
    assert choose_folder(None, default, overwrite=False) == tmp_path / "demo-2"
    demo_at(tmp_path / "demo-2")
    assert choose_folder(None, default, overwrite=False) == tmp_path / "demo-3"
    assert choose_folder(None, default, overwrite=True) == default


def test_a_named_folder_is_never_replaced_unasked(tmp_path: Path) -> None:
    taken = demo_at(tmp_path / "mine")
    with pytest.raises(ArtifactError, match="target exists"):
        choose_folder(taken, tmp_path / "demo", overwrite=False)
    assert choose_folder(taken, tmp_path / "demo", overwrite=True) == taken


def test_overwrite_spares_what_is_no_demo(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="no earlier demo"):
        choose_folder(tmp_path, tmp_path / "demo", overwrite=True)


def test_the_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = demo_at(tmp_path / "demo")
    with staged(target) as draft:
        (draft / "new").write_text("new")
        assert (target / MARKER).exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def fail_halfway(draft: Path, error: type[BaseException]) -> None:
    (draft / "half").write_text("half")
    raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_behind_and_the_old_one_untouched(tmp_path: Path, error: type[BaseException]) -> None:
    target = demo_at(tmp_path / "demo")
    with pytest.raises(error), staged(target) as draft:
        fail_halfway(draft, error)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert [path.name for path in target.iterdir()] == [MARKER]
