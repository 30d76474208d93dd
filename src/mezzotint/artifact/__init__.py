"""Save and load a quantized pipeline.

An artifact is a folder that is a normal diffusers pipeline apart from the network:

    model_index.json, scheduler/, ...   as diffusers writes them
    unet/config.json                    the float network's configuration
    unet/quantized.safetensors          packed codes, scales, zero points, biases, and what stays float
    manifest.json                       what the leaves mean, where they come from, how to repeat it (see `manifest`)
    README.md                           a model card; the only file that may be edited

Loading builds the network on the meta device, exchanges its layers for empty integer ones by the manifest, compares
shape and dtype leaf by leaf, then fills it: no float weights and no pickles are needed.
"""

from mezzotint.artifact.load import load_quantized
from mezzotint.artifact.save import check_output, save_quantized
from mezzotint.manifest import Manifest, read_manifest

__all__ = ["Manifest", "check_output", "load_quantized", "read_manifest", "save_quantized"]
