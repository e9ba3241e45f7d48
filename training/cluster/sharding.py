"""What a file of ``accelerate config`` says about sharding, for processes that others start."""

from __future__ import annotations

import os
from pathlib import Path

from yaml import YAMLError

from prefloop.training.errors import TrainingError

_ABOUT_SHARDING = ("FSDP_", "ACCELERATE_", "PARALLELISM_CONFIG_")


def sharding_of(config_file: Path) -> dict[str, str]:
    """The variables by which ``accelerate launch`` would tell its processes. How many these are,
    and where, is not in them.

    Raises ``TrainingError`` for a file that accelerate does not read, or that asks for DeepSpeed.
    """
    from accelerate.commands.launch import _validate_launch_command as filled_in
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    before = dict(os.environ)
    try:
        arguments = launch_command_parser().parse_args(["--config_file", str(config_file), "none"])
        arguments, *_ = filled_in(arguments)
        if arguments.use_deepspeed:
            raise TrainingError(
                f"{config_file} asks for DeepSpeed, which train.cluster does not start: let it ask "
                "for FSDP, or leave out train.cluster"
            )
        found = prepare_multi_gpu_env(arguments)
    except (ValueError, TypeError, KeyError, AttributeError, YAMLError) as error:
        raise TrainingError(
            f"{config_file} cannot be read by accelerate ({' '.join(str(error).split())}): make it "
            "anew with `accelerate config --config_file`"
        ) from None
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
    return {
        name: value
        for name, value in found.items()
        if name.startswith(_ABOUT_SHARDING) and before.get(name) != value
    }
