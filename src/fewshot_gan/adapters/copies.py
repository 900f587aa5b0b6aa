"""Banks beside a bank: of another pipeline with the same generator, of a copied or unpickled generator."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from .effective import bookkeeping

if TYPE_CHECKING:
    from .bank import AdapterBank


def share(bank: "AdapterBank", other: "AdapterBank") -> None:
    """Load all adapters of `bank` into `other`, of the same generator, and let the same ones act there.

    Raises:
        ValueError: adapters of `bank` are fused.
    """
    bank.refuse_while_fused("share its generator")
    with bookkeeping:
        other.weights_lock, other._fingerprint = bank.weights_lock, bank._fingerprint
        for name, adapter in bank.adapters.items():
            other.add(name, adapter)
        other.active, other.enabled = dict(bank.active), bank.enabled
        other._install()


def bank_state(bank: "AdapterBank") -> dict:
    """What a copy of `bank` starts from: without what is cached for the tensors of this generator."""
    with bookkeeping:
        state = dict(bank.__dict__)
        state |= {"_cache": OrderedDict(), "_ledger": [0], "_compiled_draw": None}
        state["_fingerprint"] = bank.known_fingerprint()
        # the copy's own stamp if nobody wrote to the fused weights, else one that fits no weights
        untouched = bank._fused_stamp is None or bank._fused_stamp == bank._written_stamp()
        state["_fused_stamp"] = None if untouched else ()
        return state


def restore_bank(bank: "AdapterBank", state: dict) -> None:
    """Make `bank` the copy that `state` describes, bound to the copy of the generator in it."""
    fingerprint, touched = state["_fingerprint"], state["_fused_stamp"] is not None
    bank.__dict__.update(state, _fingerprint=None)
    if fingerprint is not None:
        bank.remember_fingerprint(fingerprint)
    if bank.fused is not None and not touched:
        bank._fused_stamp = bank._written_stamp()
    with bookkeeping:
        bank._install()
