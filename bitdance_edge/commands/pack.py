"""``bitdance-edge pack``: a bundle and what was built of it as one archive."""

import argparse

from bitdance_edge.commands.values import path

EXAMPLE = """examples:
  bitdance-edge pack bundles/digits-4x -o digits-4x.tar
  bitdance-edge pack bundles/B-4x -o B-4x.tar --targets rtx:8.9 --engines-only
  bitdance-edge pack bundles/14B-64x --in-place
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a bundle with what was built of it as one .tar file, the same bytes every time."
    parser.epilog = EXAMPLE
    parser.add_argument("bundle", type=path, help="bundle folder")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--out", type=path, metavar="FILE", help=".tar file to write")
    where.add_argument(
        "--in-place", action="store_true", help="copy what the bundle shares with its checkpoint, and write no archive"
    )
    parser.add_argument(
        "--targets", nargs="*", metavar="TARGET", help="builds to pack (default: all; --targets without a name: none)"
    )
    parser.add_argument("--force", action="store_true", help="replace an archive of that name")
    parser.add_argument(
        "--engines-only", action="store_true", help="omit the graphs and weights of stages whose engines are packed"
    )


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.engines.targets import parse_target
    from bitdance_edge.runtime import Bundle, RequestError
    from bitdance_edge.runtime.bundle.pack import copy_shared_files, pack_bundle
    from bitdance_edge.runtime.values import quoted

    if args.in_place:
        if args.targets is not None or args.engines_only or args.force:
            raise RequestError("--in-place writes no archive; omit --targets, --engines-only and --force")
        copied = copy_shared_files(Bundle.open(args.bundle))
        print(f"{args.bundle} is self-contained: {copied / 1e6:.1f} MB copied")
        return
    if args.out.suffix != ".tar":
        raise RequestError(f"{args.out} does not end in .tar, the format of packed bundles")
    targets = None if args.targets is None else [parse_target(name).name for name in args.targets]
    packed = pack_bundle(Bundle.open(args.bundle), args.out, targets, args.engines_only, force=args.force)
    print(f"{args.out}: {packed.files} files, {packed.bytes / 1e6:.1f} MB")
    if packed.omitted:
        print(f"omitted: {packed.omitted / 1e6:.1f} MB of graphs that the engines stand for; ONNX Runtime needs them")
    if packed.linked:
        print(f"stored once: {packed.linked / 1e6:.1f} MB of equal files")
    print(f"unpack it with: tar -xf {quoted(args.out)}")
