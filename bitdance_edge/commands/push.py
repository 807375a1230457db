"""``bitdance-edge push``: a bundle to a repository on the Hub, with a model card made from it."""

import argparse

EXAMPLE = """examples:
  bitdance-edge push bundles/digits-4x OWNER/digits-4x
  bitdance-edge push bundles/digits-4x-int8 OWNER/digits-4x-int8 --private
  bitdance-edge push bundles/digits-4x OWNER/digits-4x --dry-run     # prints the card and uploads nothing
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Upload a bundle to a repository on the Hub, in one commit, with a card that says its precision, its errors "
        "and losses, and its licence. Log in first with: hf auth login"
    )
    parser.epilog = EXAMPLE
    parser.add_argument("bundle", help="bundle folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository; it is made if there is none")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--license", help="of the weights, as an SPDX name (default: the checkpoint's, where known)")
    parser.add_argument("--dry-run", action="store_true", help="print the card and upload nothing")


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.commands.model_card import model_card
    from bitdance_edge.runtime import Bundle
    from bitdance_edge.runtime.bundle.hub import require_hub_name, upload

    require_hub_name(args.repository)
    bundle = Bundle.open(args.bundle)
    card = model_card(bundle, args.repository, args.license)
    if args.dry_run:
        print(card, end="")
        return
    print(upload(bundle, args.repository, card, private=args.private))
