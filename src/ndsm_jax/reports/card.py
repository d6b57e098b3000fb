"""The card of a model: what it was trained on, how good it is, and where it ends; Markdown."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from ndsm_jax.datasets.licences import licence_of
from ndsm_jax.model import Model
from ndsm_jax.reports.report import number, reproduce_command
from ndsm_jax.reports.study import markdown

NOT_STATED = "not stated"

LIBRARY = 'library_name: "ndsm_jax"'
"""The first line of a card's header."""


def card(
    model: Model, *, use: str, metrics: Mapping[str, Any] | None = None, licence: str | None = None
) -> str:
    """Markdown with a header in YAML, as Hugging Face's hub reads it.

    Args:
      model: what the card is of.
      use: a section of text, how the file beside the card is read.
      metrics: see `metrics_of`; None: not evaluated.
      licence: of the data; None: what is known of data that come by name.
    """
    config, data = model.config, model.facts["data"]
    facts = metrics["facts"] if metrics is not None and _of_this_state(model, metrics) else {}
    title = f"{data['name']}: {config.process.name} + {config.objective.name}"
    if licence is None:
        known = licence_of(data["name"], data["source"])
        licence = NOT_STATED if known is None else f"{known.name} ({known.stated})"
    size = sum(leaf.size for leaf in jax.tree.leaves(model.state.params))
    process = model.experiment.process
    sections = {
        "Use": use,
        "Data": _table(
            {
                "name": data["name"],
                "source": data["source"],
                "licence of the data": licence,
                "SHA-256 of the data": f"`{data['digest']}`",
                "training items": f"{data['num_train']} of shape {tuple(data['shape'])}",
                "split": _split(model),
            }
        ),
        "Model": _table(
            {
                "process": f"{process.name}, {process.dim} dimensions, horizon"
                f" {float(process.horizon):.4g}",
                "starts from": type(process.reference).__name__
                if model.experiment.components is None
                else f"one of {model.experiment.components.num_components} Gaussian components",
                "objective": config.objective.name,
                "network": f"{config.network.name}, {size:,} parameters",
                "training": facts.get("training")
                or f"{int(model.state.step)} steps, seed {config.train.seed}",
                "sampling": f"{config.sample.sampler}, {len(model.experiment.sample_grid) - 1}"
                " steps",
            }
        ),
        "Metrics": _metrics(model, metrics),
        "Limits": _limits(model),
        "Reproduce": f"```sh\n{reproduce_command(config)}\n```",
        "Versions": ", ".join(f"{k} {v}" for k, v in model.facts["versions"].items()),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return f"---\n{_header(model, title, metrics)}---\n\n# {title}\n\n{body}\n"


def is_card(text: str) -> bool:
    """Whether a text begins as a `card` does."""
    return text.startswith(f"---\n{LIBRARY}\n")


def metrics_of(folder: pathlib.Path) -> Mapping[str, Any] | None:
    """What `experiments/evaluate.py` wrote into the metrics.json of a run; None: there is none.

    Raises ValueError where it is damaged, or another file.
    """
    path = folder / "metrics.json"
    if not path.exists():
        return None
    try:
        found, problem = json.loads(path.read_bytes()), "has other contents"
    except (ValueError, RecursionError) as error:
        found, problem = None, f"cannot be read ({error})"
    if not _is_whole(found):
        raise ValueError(
            f"{path} {problem}: write it again with experiments/evaluate.py --workdir={folder}, or"
            " move it away for a card without metrics"
        )
    return found


def _is_whole(metrics: Any) -> bool:
    """Whether there is all of it that a card shows, of the right types."""
    if not isinstance(metrics, dict):
        return False
    facts, rows = metrics.get("facts"), metrics.get("metrics")
    likely = metrics.get("likelihood") or {}
    if not (isinstance(facts, dict) and isinstance(rows, dict) and isinstance(likely, dict)):
        return False
    more = likely.get("rows", {})
    return (
        isinstance(more, dict)
        and all(isinstance(facts.get(name, ""), str) for name in ("training", "sampling"))
        and all(_has(row, "value", "floor", "prior") for row in rows.values())
        and all(isinstance(row.get("better"), str) for row in rows.values())
        and all(_has(row, "value", "se") for row in more.values())
    )


def _has(row: Any, *names: str) -> bool:
    """Whether a row has numbers of these names, or null."""
    return isinstance(row, dict) and all(
        name in row and isinstance(row[name], int | float | None) for name in names
    )


def _header(model: Model, title: str, metrics: Mapping[str, Any] | None) -> str:
    """YAML, of which JSON is a part."""
    data = model.facts["data"]
    fields: dict[str, Any] = {"tags": ["score-based-model", "diffusion", "jax"]}
    if metrics is not None and _of_this_state(model, metrics):
        found = [
            {"type": name, "name": f"{name} (floor {number(m['floor'])})", "value": m["value"]}
            for name, m in metrics["metrics"].items()
            if m["value"] is not None
        ]
        result = {
            "task": {"type": _task(model)},
            "dataset": {"name": data["name"], "type": data["name"], "revision": data["digest"]},
            "metrics": found,
        }
        fields["model-index"] = [{"name": title, "results": [result]}]
    lines = [LIBRARY, *(f"{key}: {json.dumps(value)}" for key, value in fields.items())]
    return "\n".join(lines) + "\n"


def _task(model: Model) -> str:
    """As the hub calls it."""
    if len(model.facts["data"]["shape"]) != 3:
        return "other"
    told = model.experiment.classes is not None
    return "other" if told else "unconditional-image-generation"


def _split(model: Model) -> str:
    c = model.config
    text = f"data.seed {c.data.seed}, held out for evaluation: data.test_fraction"
    text += f" {c.data.test_fraction}, where the source has no split of its own"
    if model.state.best is not None:
        text += f"; of the training items {c.train.held_out:.0%} chose the average (train.select)"
    return text


def _of_this_state(model: Model, metrics: Mapping[str, Any]) -> bool:
    trained = metrics.get("facts", {}).get("training", "")
    return trained.startswith(f"{int(model.state.step)} steps")


def _metrics(model: Model, metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "Not evaluated: `experiments/evaluate.py` was not run."
    if not _of_this_state(model, metrics):
        return "Not evaluated: metrics.json is of another step of the training."
    rows = [
        {
            "metric": name,
            "samples": number(m["value"]),
            "floor": number(m["floor"]),
            "prior": number(m["prior"]),
            "better": m["better"],
        }
        for name, m in metrics["metrics"].items()
    ]
    text = (
        "Each beside its floor, that of training data in the place of the samples, and that of the"
        " law that sampling starts from.\n"
    )
    if sampling := metrics.get("facts", {}).get("sampling"):
        text += f"Measured with {sampling}.\n"
    text += "\n" + markdown(rows)
    for name, row in (metrics.get("likelihood") or {}).get("rows", {}).items():
        text += f"\n\nHeld-out log p, {name}: {number(row['value'])} nats an item"
        text += f" (standard error {number(row['se'])})."
    return text


def _limits(model: Model) -> str:
    data = model.facts["data"]
    lines = [
        f"It knows {data['num_train']} training items of `{data['name']}` and nothing else; what is"
        " rare among them is rare or absent among samples.",
        "A metric near its floor says nothing of what it does not see.",
    ]
    if model.columns:
        lines.append("Samples of a table can resemble single rows: they are not anonymised data.")
    return "\n".join(f"- {line}" for line in lines)


def _table(rows: Mapping[str, str]) -> str:
    lines = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return f"| | |\n| --- | --- |\n{lines}"
