"""What a project wants beside the rows: how it is told of the files."""

from __future__ import annotations

import json
from collections.abc import Sequence

_LABELLING = """<View>
  <Style>.lsf-main-content { white-space: pre-wrap }</Style>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="preference" toName="left,right"/>
  <Text name="left" value="$left"/>
  <Text name="right" value="$right"/>
</View>
"""


def files_beside(form: str, files: Sequence[str], *, tools: bool) -> dict[str, str]:
    """Name and text of each file that goes beside ``files`` (the splits written); ``tools``:
    whether a row has some."""
    if form in ("llamafactory", "alpaca"):
        return {"dataset_info.json": _text({_name(one): _entry(form, one, tools) for one in files})}
    if form == "axolotl":
        return {"dataset.yaml": "".join(_axolotl(one) for one in files)}
    if form == "openrlhf":
        keys = "--data.prompt_key prompt --data.chosen_key chosen --data.rejected_key rejected"
        return {"arguments.txt": f"{keys} --data.apply_chat_template\n"}
    if form == "nemo-rl":
        names = {"train": "train", "test": "validation"}
        parts = [f"  {names[_name(one)]}:\n    data_path: {one}\n" for one in files]
        default = "  default:\n    dataset_name: PreferenceDataset\n"
        return {"data.yaml": "data:\n" + "".join(parts) + default}
    if form == "label-studio":
        return {"labelling.xml": _LABELLING}
    return {}


def _entry(form: str, file: str, tools: bool) -> dict[str, object]:
    if form == "alpaca":
        columns = {
            "prompt": "instruction", "query": "input", "system": "system", "history": "history",
            "chosen": "chosen", "rejected": "rejected",
        }  # fmt: skip
        return {"file_name": file, "ranking": True, "columns": columns}
    columns = {
        "messages": "conversations", "system": "system", "chosen": "chosen",
        "rejected": "rejected", **({"tools": "tools"} if tools else {}),
    }  # fmt: skip
    return {"file_name": file, "formatting": "sharegpt", "ranking": True, "columns": columns}


def _axolotl(file: str) -> str:
    key = "datasets" if _name(file) == "train" else "test_datasets"
    return (
        f"{key}:\n  - path: {file}\n    ds_type: json\n    split: train\n"
        "    type: chat_template.default\n    field_messages: messages\n"
        "    field_chosen: chosen\n    field_rejected: rejected\n"
    )


def _name(file: str) -> str:
    return file.partition(".")[0]


def _text(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
