"""Create the repos and upload cards, grids, reports and weights; without --push only list them.

    python hub_cards/publish.py --org NAME
    python hub_cards/publish.py --org NAME --repos ffhq sketch --private --push

Nothing is uploaded if the lint finds a problem in any repo, in the stored cards or in those written for the owner. Each
repo is uploaded in one commit. After an interruption run the same command again.
"""

import argparse
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from build import ROOT, build, repos, stage
from lint import problems

from fewshot_gan.hub import push_folder
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.files import user_path

VERSION = "v1"  # branch that kernels.get_kernel(version=1) reads; the version is in build.toml


def prepare(folder: Path, org: str, names: list[str], hypernetwork=None, kept: Path = ROOT) -> dict[str, Path]:
    """Write the cards for `org` and make a folder per repo with all files to publish.

    Args:
        folder: empty folder to work in.
        org: owner of the repos.
        names: names of the repos.
        hypernetwork: folder of a trained hypernetwork; None: no repo for one.
        kept: folder of the stored cards, which are checked first.

    Returns:
        Name → folder, in the order of publishing.

    Raises:
        ValueError: the lint finds problems; the message has a sentence on each.
    """
    facts_of, sentences = repos(hypernetwork), []
    for name in (name for name in names if name in repos()):  # no card of a hypernetwork is stored
        kept_as = stage(name, folder / "kept" / name, kept)
        sentences += [f"{name}: {problem}" for problem in problems(name, facts_of[name], kept_as)]
    if sentences:
        raise ValueError("nothing was published; " + "; ".join(sentences))
    build(folder / "cards", org, hypernetwork, names)  # refuses what the lint finds
    return {name: stage(name, folder / "repos" / name, folder / "cards", hypernetwork) for name in names}


def listing(repo_id: str, folder: Path, repo_type: str, visibility: str) -> str:
    """Return what would be created and uploaded: a line for the repo and one per file."""
    lines = [f"{repo_id}  ({repo_type}, {visibility})"]
    for path in (p for p in sorted(folder.rglob("*")) if p.is_file()):
        name = path.relative_to(folder).as_posix()
        lines.append(f"  {name:58}{path.stat().st_size:>12,}  {sha256(path.read_bytes()).hexdigest()}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--org", required=True, help="user or organisation that owns the repos")
    parser.add_argument("--repos", nargs="+", metavar="REPO", help="repos to publish (default: all)")
    parser.add_argument("--hypernetwork", type=user_path, help="folder of a trained hypernetwork, to publish it too")
    parser.add_argument("--push", action="store_true", help="upload; without it nothing leaves this machine")
    parser.add_argument("--private", action="store_true", help="make new repos private, and refuse public ones")
    parser.add_argument("--token", help="token with write access (default: the one of `hf auth login`)")
    args = parser.parse_args(argv)
    try:
        facts_of = repos(args.hypernetwork)
        if unknown := set(args.repos or ()) - facts_of.keys():
            parser.error(f"there is no repo {', '.join(sorted(unknown))}; known: {', '.join(facts_of)}")
        names = [name for name in facts_of if not args.repos or name in args.repos]
        visibility = "private" if args.private else "public or your default"
        with tempfile.TemporaryDirectory() as temp:
            for name, folder in prepare(Path(temp), args.org, names, args.hypernetwork).items():
                repo_id, kernels = f"{args.org}/{name}", facts_of[name].kind == "kernels"
                repo_type = "kernel" if kernels else "model"
                print(listing(repo_id, folder, repo_type, visibility))
                options = {"private": args.private or None, "token": args.token, "repo_type": repo_type}
                options["commit_message"] = f"Publish {name} with fewshot_gan"
                for branch in (None, *((VERSION,) if kernels else ())) if args.push else ():
                    push_folder(folder, repo_id, revision=branch, **options)
                    print(f"  uploaded to {repo_id}{f' at {branch}' if branch else ''}")
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    if not args.push:
        print("nothing was created or uploaded; add --push to do it", file=sys.stderr)


if __name__ == "__main__":
    with script():
        main()
