"""The artwork the reference models are trained on: npm packages at pinned versions.

Each package holds one emoji set in the Iconify JSON format: ``icons.json`` maps an icon's name to an SVG body,
``metadata.json`` maps an emoji group to names. `integrity` is the tarball's digest as npm prints it, so a fetch
that succeeds has fetched the very bytes we trained on.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One emoji set: where it comes from and under which licence."""

    key: str  # short name, also the folder it is unpacked to
    package: str  # npm package
    version: str
    integrity: str  # "sha512-" + base64 digest of the tarball
    title: str
    author: str
    homepage: str
    licence: str  # SPDX identifier of the artwork


SOURCES = (
    Source(
        key="noto",
        package="@iconify-json/noto",
        version="1.2.9",
        integrity="sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        title="Noto Emoji",
        author="Google Inc",
        homepage="https://github.com/googlefonts/noto-emoji",
        licence="Apache-2.0",
    ),
    Source(
        key="noto-v1",
        package="@iconify-json/noto-v1",
        version="1.2.5",
        integrity="sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        title="Noto Emoji (v1)",
        author="Google Inc",
        homepage="https://github.com/googlefonts/noto-emoji",
        licence="Apache-2.0",
    ),
    Source(
        key="fluent-emoji",
        package="@iconify-json/fluent-emoji",
        version="1.2.7",
        integrity="sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        title="Fluent Emoji",
        author="Microsoft Corporation",
        homepage="https://github.com/microsoft/fluentui-emoji",
        licence="MIT",
    ),
    Source(
        key="fluent-emoji-flat",
        package="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        integrity="sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        title="Fluent Emoji Flat",
        author="Microsoft Corporation",
        homepage="https://github.com/microsoft/fluentui-emoji",
        licence="MIT",
    ),
)
