"""The environment in which an agent looks for bit-widths, registered with gymnasium."""

import gymnasium

gymnasium.register(id="haq/Quantization-v0", entry_point="haq.envs.quantization:QuantizationEnv")
