import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # a copy, so that no build folder appears in the checkout
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_ships_every_module_and_every_yaml_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]
    packages = ("conf", "data", "optim", "train", "scaling", "slurm", "hydra_plugins")
    expected = [p for folder in packages for kind in ("*.py", "*.yaml") for p in (ROOT / folder).rglob(kind)]
    assert len(expected) > 50
    assert {str(path.relative_to(ROOT)) for path in expected} | {"fulcrum.py"} <= names


def test_the_installed_wheel_works_from_any_folder(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import fulcrum; fulcrum.main()"
    command = [sys.executable, "-c", code, "train", "experiment=quickstart", "--cfg", "job"]
    shown = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert "data.tokenizers.BPE" in shown.stdout, shown.stderr
