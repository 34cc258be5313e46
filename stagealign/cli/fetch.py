"""`stagealign fetch`: the lab's assets, by exact version and hash."""

from stagealign.cli.output import line


def fetch() -> None:
    """Downloads every asset of the lab that is missing from the cache or damaged."""
    from stagealign.cli.progress import download as bar
    from stagealign.data import assets, download
    from stagealign.store.home import default_home

    home = default_home()
    for asset in assets.ASSETS.values():
        there = download.ready(asset, home)
        damage = download.damaged(asset, home) if there else None
        if damage:
            line(f"{damage}; it is fetched again", "red")
        if damage or not there:
            with bar(asset) as progress:
                download.fetch(asset, home, progress, mend=True)
    line(f"assets ready in {home / 'assets'}")
