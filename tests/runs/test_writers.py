"""Metric files, read back with the standard library, Pillow and tensorboardX's protocol buffers."""

from __future__ import annotations

import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax.runs import MetricWriter, aside, check_output, read_metrics


def read_strict(path):
    """Lines of a JSON-lines file, by a parser that refuses NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def read_events(directory):
    """Events of all TensorBoard files in order of writing. A record is length, CRC, data, CRC."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted(directory.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            events.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return events


def test_lines_are_strict_json(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"loss": np.float32(0.5), "count": 3, "jax": jnp.array([2.0])})
        writer.write(2, {"loss": float("nan"), "up": float("inf"), "down": jnp.float32(-jnp.inf)})
        writer.write(3, {"half": jnp.bfloat16(1.5), "ok": True})
    assert read_strict(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5, "count": 3, "jax": 2.0},
        {"step": 2, "loss": None, "up": None, "down": None},
        {"step": 3, "half": 1.5, "ok": True},
    ]
    rows = read_metrics(tmp_path)
    assert rows[0] == {"step": 1, "loss": 0.5, "count": 3, "jax": 2.0}
    assert all(math.isnan(rows[1][name]) for name in ("loss", "up", "down"))
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("value", [np.ones(2), "0.5", None, 1j])
def test_not_a_number(tmp_path, value):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(ValueError, match="'loss' must be a single number"):
            writer.write(1, {"loss": value})
        with pytest.raises(ValueError, match="step"):
            writer.write(1, {"step": 2})
    assert read_metrics(tmp_path) == []


def test_lines_are_on_disk_before_close(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.write(1, {"loss": 1.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    writer.close()


@pytest.mark.parametrize(
    "half_line", [b"", b'{"step": 6, "loss": 0.', b'{"step": 6}', "é".encode()[:1]]
)
def test_truncate_drops_later_and_half_lines(tmp_path, half_line):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        for step in range(1, 6):
            writer.write(step, {"loss": 1.0 / step})
    with path.open("ab") as file:
        file.write(half_line)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]

    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.truncate(3)
        assert [row["step"] for row in read_strict(path)] == [1, 2, 3]
        for step in range(4, 7):
            writer.write(step, {"loss": 2.0})
    assert [row["step"] for row in read_strict(path)] == [1, 2, 3, 4, 5, 6]
    assert read_strict(path)[2]["loss"] == 1.0 / 3
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_half_line_is_not_continued(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(2, {"loss": 1.0})
    assert read_strict(path) == [{"step": 1}, {"step": 2, "loss": 1.0}]


def test_bad_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path)


def test_no_metrics(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_metrics(tmp_path / "absent")


def test_tensorboard_events(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    with MetricWriter(tmp_path) as writer:
        for step in range(1, 5):
            writer.write(step, {"train/loss": 0.25 * step})
        writer.image(4, "samples", pixels)
    with MetricWriter(tmp_path) as writer:
        writer.truncate(2)
        writer.write(3, {"train/loss": 8.0})
        writer.flush()
        with pytest.raises(ValueError, match="before the first write"):
            writer.truncate(2)

    events = read_events(tmp_path / "tensorboard")
    values = [(event.step, value) for event in events for value in event.summary.value]
    scalars = [(s, v.tag, v.simple_value) for s, v in values if not v.HasField("image")]
    assert scalars == [
        *((step, "train/loss", 0.25 * step) for step in range(1, 5)),
        (3, "train/loss", 8.0),
    ]
    [(step, image)] = [(step, value) for step, value in values if value.HasField("image")]
    assert (step, image.tag, image.image.height, image.image.width) == (4, "samples", 5, 4)
    # TensorBoard discards earlier events from the step of a START on
    assert [event.step for event in events if event.session_log.status == 1] == [3]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_png(tmp_path, channels):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, channels), dtype=np.uint8)
    with MetricWriter(tmp_path) as writer:
        writer.image(7, "ema/samples", pixels)
    with Image.open(tmp_path / "images" / "ema" / "samples" / "00000007.png") as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 2), (1, 4, 4, 3)])
def test_not_an_image(tmp_path, shape):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(ValueError, match="'x' must be uint8"):
            writer.image(1, "x", np.zeros(shape, np.uint8))
        with pytest.raises(ValueError, match="float64"):
            writer.image(1, "x", np.zeros((4, 4, 3)))


def test_a_file_that_is_not_finished_leaves_the_one_before(tmp_path):
    path = tmp_path / "new" / "x.npy"
    with aside(path) as part:
        part.write_bytes(b"first")

    def stop(content):
        with aside(path) as part:
            part.write_bytes(content)
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        stop(b"half of the sec")
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_outputs_that_cannot_be_written_are_told_with_the_flag(tmp_path):
    check_output(tmp_path / "new" / "x.npy")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(ValueError, match=r"--out: .*new is a folder where a file is needed"):
        check_output(tmp_path / "new")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"--out: the folder of .*x\.npy cannot be made"):
        check_output(tmp_path / "file" / "x.npy")
