"""Readers of what trackers wrote: by the libraries' own readers, or their formats."""

import importlib
import json
import re
import struct
import time


class Found:
    """What a reader of the library itself finds: points by name, config, texts and pictures."""

    def __init__(self):
        self.points, self.config, self.texts, self.pictures = {}, {}, [], []

    def add(self, name, step, value):
        self.points.setdefault(name, []).append((int(step), float(value)))


def read_tensorboard(place):
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams import plugin_data_pb2

    reader = module.EventAccumulator(str(place), size_guidance={"tensors": 0, "images": 0})
    reader.Reload()
    found, tags = Found(), reader.Tags()
    for name in tags["scalars"]:
        for event in reader.Scalars(name):
            found.add(name, event.step, event.value)
    for name in tags["tensors"]:
        for event in reader.Tensors(name):
            if event.tensor_proto.dtype == 7:
                found.texts += [text.decode() for text in event.tensor_proto.string_val]
            else:
                metadata = reader.SummaryMetadata(name)
                data = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
                for key, value in data.session_start_info.hparams.items():
                    found.config[key] = getattr(value, value.WhichOneof("kind"))
    found.pictures = [image.encoded_image_string for name in tags["images"] for image in reader.Images(name)]
    return found


def wandb_records(path):
    """Return the records of a log of wandb. Its own process may still write the end when the run is over."""
    from wandb.proto import wandb_internal_pb2

    for _ in range(300):
        found = [wandb_internal_pb2.Record.FromString(data) for data in parts(path.read_bytes())]
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def parts(data):
    """Yield the records of a LevelDB log, the format of wandb's files, which its Python part cannot read."""
    place, begun = 7, b""  # after the header
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        begun += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield begun
            begun = b""


def read_wandb(place):
    found = Found()
    for path in sorted(place.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            for item in record.run.config.update:
                found.config[item.key] = json.loads(item.value_json)
            items = {".".join(item.nested_key): item.value_json for item in record.history.item}
            step = json.loads(items.get("_step", "0"))
            files = {}
            for item in record.history.item:
                name, value = item.key or item.nested_key[0], json.loads(item.value_json)
                if len(item.nested_key) > 1 and item.nested_key[1] in ("_type", "path"):
                    files.setdefault(name, {})[item.nested_key[1]] = value
                elif isinstance(value, dict):
                    files[name] = value
                elif isinstance(value, (int, float)) and not name.startswith("_"):
                    found.add(name, step, value)
            for file in files.values():
                data = (path.parent / "files" / file["path"]).read_bytes()
                if file["_type"] == "image-file":
                    found.pictures.append(data)
                else:
                    found.texts += [text for _, text in json.loads(data)["data"]]
    return found


def read_mlflow(place):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    found = Found()
    (run,) = client.search_runs([experiment.experiment_id])  # a resumed run is the same run
    assert run.info.run_name == "first"
    found.config = run.data.params
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            found.add(name, metric.step, metric.value)
    root = place / "artifacts" / run.info.run_id / "artifacts"
    found.texts = [path.read_text() for path in sorted(root.glob("texts/*"))]
    found.pictures = [path.read_bytes() for path in sorted(root.glob("pictures/*"))]
    return found


def read_swanlab(place):
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    record_pb2 = importlib.import_module("swanlab.proto.swanlab.record.v1.record_pb2")
    found = Found()
    for path in sorted(place.glob("run-*/run-*.swanlab")):
        reader = DataStoreReader()
        reader.open(path)
        for data in reader:
            record = record_pb2.Record.FromString(data)
            if record.HasField("scalar"):
                value = record.scalar.value.number
                found.add(record.scalar.key, record.scalar.step, value)
            for item in record.media.value.items:
                (file,) = path.parent.glob(f"media/**/{item.filename}")
                if file.suffix == ".txt":
                    found.texts.append(file.read_text())
                else:
                    found.pictures.append(file.read_bytes())
        reader.close()
        text = (path.parent / "files" / "config.yaml").read_text()
        found.config |= dict(re.findall(r"^([\w.]+):\n(?:  .*\n)*?  value: (.*)$", text, re.MULTILINE))
    return found


READERS = {
    "tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow, "swanlab": read_swanlab,
}  # fmt: skip


def wandb_artifacts(place):
    """Return the files of all artifacts, by name: offline, they wait in a directory beside the log."""
    files = {}
    for path in place.glob("wandb/offline-run-*/*.wandb"):
        for record in wandb_records(path):
            artifact = record.artifact or record.request.log_artifact.artifact
            for entry in artifact.manifest.contents:
                with open(entry.local_path, "rb") as file:
                    files[entry.path] = file.read()
    return files


def mlflow_artifacts(place):
    """Return the files of all checkpoints, by name."""
    return {path.name: path.read_bytes() for path in place.glob("artifacts/*/artifacts/checkpoints/*/*")}


ARTIFACTS = {"wandb": wandb_artifacts, "mlflow": mlflow_artifacts}
