"""Original checkpoints of the five models of the paper, and of others with the same networks, as diffusers pipelines.

    reading          a file -> its entries, without running code that it brings
    schema, configs  the YAML that says what the entries are; recognises the published models without one
    networks         the YAML -> diffusers networks without weights
    keys             a name in such a network -> the entry that holds its weight
    filling          every entry in its place, none missing, none left over
    clip_vocabulary  the tokenizer of the text encoder
    checkpoint       all of it: a file -> a pipeline

What comes out computes what the original implementations compute, to about 1e-6; the tests hold it to their outputs.
"""

from mezzotint.models.importing.checkpoint import Imported, check_file, import_checkpoint

__all__ = ["Imported", "check_file", "import_checkpoint"]
