"""One direction of imports: who may know whom."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "src" / "ndsm_jax"
NUMERICS = (
    "checks.py",
    "arrays.py",
    "rows.py",
    "linear_maps.py",
    "clock.py",
    "integrators.py",
    "currents.py",
    "frames.py",
    "augmentation.py",
    "columns.py",
    "table_frame.py",
    "derivatives.py",
    "objectives.py",
    "optimisation.py",
    "control_variates.py",
    "references",
    "processes",
    "noising",
    "networks",
    "sampling",
    "likelihood.py",
    "measurements.py",
    "conditions.py",
    "contrast.py",
    "guidance.py",
    "experiment.py",
)
ABOVE = ("config", "datasets", "runs", "training", "launch", "latent", "reports", "evaluation")


def files(*names):
    for name in names:
        path = PACKAGE / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def imports(path):
    """Modules that a file imports, wherever it does, but for the type checker alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(module, *packages):
    return any(f"{module}.".startswith(f"ndsm_jax.{package}.") for package in packages)


@pytest.mark.parametrize("path", list(files(*NUMERICS)), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_numerics_know_no_config_data_file_or_progress_bar(path):
    found = imports(path)
    assert not [m for m in found if within(m, *ABOVE) or m.split(".")[0] in ("tqdm", "pathlib")]


def test_evaluation_knows_no_training():
    for path in files("evaluation"):
        assert not [m for m in imports(path) if within(m, "training", "launch", "config")], path


def test_runs_and_training_know_no_config():
    for path in files("runs", "training", "experiment.py"):
        assert not [m for m in imports(path) if within(m, "config", "launch")], path


def test_nothing_asks_for_the_name_of_a_process():
    for path in files("."):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                text = ast.unparse(node)
                assert "process.name ==" not in text or "config" in text, f"{path}: {text}"
                assert "process.name !=" not in text or "config" in text, f"{path}: {text}"


def test_nothing_is_unpickled():
    """SECURITY.md: every numpy.load refuses pickles, and nothing else could read one."""
    root = PACKAGE.parents[1]
    paths = [*PACKAGE.rglob("*.py"), *(root / "experiments").rglob("*.py")]
    loads = 0
    for path in paths:
        forbidden = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
        assert not [m for m in imports(path) if m.split(".")[0] in forbidden], path
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "yaml.load"), f"{path}: {name}"
            if name in ("np.load", "numpy.load"):
                loads += 1
                said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert said.get("allow_pickle") == "False", f"{path}: {ast.unparse(node)}"
    assert loads > 10
