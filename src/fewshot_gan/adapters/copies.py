"""Other banks made from a bank: for another pipeline of the same generator, or for a copied or unpickled generator."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from .effective import bank_lock

if TYPE_CHECKING:
    from .bank import AdapterBank


def share(bank: "AdapterBank", other: "AdapterBank") -> None:
    """Load all adapters of `bank` into `other`, a bank of the same generator, and make the same ones active there.

    Raises:
        ValueError: adapters of `bank` are fused.
    """
    bank.refuse_while_fused("share its generator")
    with bank_lock:
        other.weights_lock, other.fuser, other._mark = bank.weights_lock, bank.fuser, bank._mark
        for name, adapter in bank.adapters.items():
            other.add(name, adapter)
        other.active, other.enabled = dict(bank.active), bank.enabled
        other._install()


def bank_state(bank: "AdapterBank") -> dict:
    """Return the state of a copy or pickle of `bank`: everything but the tensors cached for this generator."""
    with bank_lock:
        state = dict(bank.__dict__)
        state |= {"_cache": OrderedDict(), "_ledger": [0], "_compiled_draw": None}
        state["_mark"] = bank.known_fingerprint()
        # None: the copy takes its own stamp. (): a stamp that fits no weights, since the fused weights were written to
        is_untouched = bank._fused_stamp is None or bank._fused_stamp == bank._written_stamp()
        state["_fused_stamp"] = None if is_untouched else ()
        return state


def restore_bank(bank: "AdapterBank", state: dict) -> None:
    """Make `bank` the copy that `state` describes, bound to the copy of the generator in it."""
    fingerprint, is_touched = state["_mark"], state["_fused_stamp"] is not None
    bank.__dict__.update(state, _mark=[None])
    if fingerprint is not None:
        bank.remember_fingerprint(fingerprint)
    if bank.fused is not None and not is_touched:
        bank._fused_stamp = bank._written_stamp()
    with bank_lock:
        bank._install()
