"""All methods, kinds of adapters and backbones by name, for command lines and model cards. Imports no torch.

Other packages register their classes with the decorators `register_method`, `register_adapter` and
`register_backbone`. An entry point of the group "fewshot_gan.plugins" names the module that does so. It is imported
when a name is requested that this package does not define, and when all names are listed.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from threading import RLock
from typing import Generic, TypeVar

GROUP = "fewshot_gan.plugins"
ARXIV = "https://arxiv.org/abs/"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """Name and description of a class that need not be imported yet.

    Attributes:
        name: name in command lines and configs.
        path: "module:Class".
        title: title in model cards and help texts; the name if empty.
        arxiv: arXiv id of the paper, or None.
    """

    name: str
    path: str
    title: str = ""
    arxiv: str | None = None

    @property
    def described(self) -> str:
        """The title with the arXiv id, for help texts: "LFS-GAN (arXiv 2308.11917)"."""
        title = self.title or self.name
        return f"{title} (arXiv {self.arxiv})" if self.arxiv else title

    @property
    def markdown(self) -> str:
        """The title with a link to the paper, for model cards."""
        title = self.title or self.name
        return f"{title} ([arXiv {self.arxiv}]({ARXIV}{self.arxiv}))" if self.arxiv else title

    def load(self) -> type:
        """Import and return the class."""
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)


@dataclass(frozen=True)
class MethodEntry(Entry):
    """Entry of a `methods.method.Method`.

    Attributes:
        description: replaces title and arXiv id in help texts.
    """

    description: str = ""

    @property
    def described(self) -> str:
        """The text for help texts."""
        return self.description or super().described


@dataclass(frozen=True)
class AdapterEntry(Entry):
    """Entry of an `adapters.Adapter`.

    Attributes:
        learning_rate: default learning rate; None means that of `TrainingConfig`.
        trainable: whether methods can train it; False for adapters made from masks or from other adapters.
        shown: fields of its config that the model card shows.
    """

    learning_rate: float | None = None
    trainable: bool = True
    shown: tuple[str, ...] = ()


E = TypeVar("E", bound=Entry)


class Catalogue(Mapping[str, E], Generic[E]):
    """Mapping from name to entry, including entries of plugins.

    Args:
        kind: what an entry is called in error messages, e.g. "method".
        entries: the entries of this package.
    """

    def __init__(self, kind: str, entries: list[E]):
        self.kind = kind
        self._entries = {entry.name: entry for entry in entries}
        self._own = frozenset(self._entries)

    def add(self, entry: E) -> None:
        """Add an entry.

        Raises:
            ValueError: another class has this name.
        """
        self.refuse_taken(entry.name, entry.path)
        self._entries[entry.name] = entry

    def refuse_taken(self, name: str, path: str) -> None:
        """Refuse a name that another class has, without importing plugins.

        Args:
            name: the name.
            path: "module:Class" of the class that would have it.

        Raises:
            ValueError: another class has this name.
        """
        present = self._entries.get(name)
        if present is not None and present.path != path:
            raise ValueError(f"{path} cannot be the {self.kind} {name!r}: {present.path} has this name; choose another")

    def __getitem__(self, name: str) -> E:
        if name not in self._entries:
            load_plugins()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(dict(self._entries))

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def own(self) -> list[str]:
        """Return the names that this package defines, without importing plugins."""
        return [name for name in self._entries if name in self._own]

    def find(self, name: str) -> E:
        """Return the entry of a name.

        Raises:
            ValueError: the name is unknown; the message lists all names.
        """
        if name not in self:
            raise ValueError(f"there is no {self.kind} {name!r}; choose one of {', '.join(self)}")
        return self[name]

    def load(self, name: str) -> type:
        """Import and return the class of a name.

        Raises:
            ValueError: the name is unknown.
        """
        return self.find(name).load()


METHODS: Catalogue[MethodEntry] = Catalogue(
    "method",
    [
        MethodEntry("lfs_gan", "fewshot_gan.methods.lfs_gan:LFSMethod", "LFS-GAN", "2308.11917"),
        MethodEntry("d3t", "fewshot_gan.methods.d3t:D3TMethod", "D3T-GAN", "2205.06032"),
        MethodEntry("pairs", "fewshot_gan.methods.pairs:PairsMethod", "pairs of pictures and faces", "2112.11641"),
        MethodEntry("cdc", "fewshot_gan.methods.cdc:CDCMethod", "cross-domain correspondence", "2104.06820"),
        MethodEntry(
            "finetune",
            "fewshot_gan.methods.finetune:FinetuneMethod",
            "plain fine-tuning",
            "1805.01677",
            description="TransferGAN (arXiv 1805.01677), FreezeD (arXiv 2002.10964), or from scratch",
        ),
        MethodEntry("adafm", "fewshot_gan.methods.adafm:AdaFMMethod", "AdaFM transfer", "2002.11810"),
        MethodEntry(
            "hyperdomainnet", "fewshot_gan.methods.hyperdomain:HyperDomainMethod", "HyperDomainNet", "2210.08884"
        ),
    ],
)
USUAL_METHOD = "lfs_gan"  # where neither a user nor pictures name one
# trained in ways of their own, so not in METHODS; model cards name them
TICKETS = MethodEntry("lottery", "fewshot_gan.training.lottery:run", "GAN lottery tickets", "2103.00397")
PIVOTAL = MethodEntry("pivotal_tuning", "fewshot_gan.training.personalize:personalize", "pivotal tuning", "2106.05744")
ADAPTERS: Catalogue[AdapterEntry] = Catalogue(
    "adapter type",
    [
        AdapterEntry(
            "left",
            "fewshot_gan.adapters.left:LeFTAdapter",
            "LeFT, learnable factorised tensors",
            "2308.11917",
            shown=("rank",),
        ),
        AdapterEntry(
            "lora",
            "fewshot_gan.adapters.lora:LoRAAdapter",
            "LoRA, low-rank differences of weights",
            "2106.09685",
            shown=("rank",),
        ),
        AdapterEntry(
            "domain_vector",
            "fewshot_gan.adapters.domain_vector:DomainVectorAdapter",
            "domain vector",
            "2210.08884",
            learning_rate=0.02,
            shown=("placement", "parametrization"),
        ),
        AdapterEntry(
            "delta_w",
            "fewshot_gan.adapters.delta_w:DeltaWAdapter",
            "Δw, a shift of the latent",
            "2305.06671",
            learning_rate=0.02,
            shown=("shared",),
        ),
        AdapterEntry(
            "adafm",
            "fewshot_gan.adapters.adafm:AdaFMAdapter",
            "AdaFM, one scale and shift per filter",
            "2002.11810",
            learning_rate=1e-3,
        ),
        AdapterEntry(
            "gan_memory",
            "fewshot_gan.adapters.gan_memory:GANMemoryAdapter",
            "GAN Memory, styles of weights",
            "2006.07543",
            learning_rate=2e-4,
        ),
        AdapterEntry("full", "fewshot_gan.adapters.full:FullAdapter", "full difference of weights", learning_rate=2e-4),
        AdapterEntry(
            "ticket",
            "fewshot_gan.adapters.ticket:TicketAdapter",
            "lottery ticket, a mask of weights",
            "2103.00397",
            trainable=False,
        ),
        AdapterEntry(
            "blend", "fewshot_gan.adapters.blend:BlendAdapter", "weighted combination of adapters", trainable=False
        ),
    ],
)
BACKBONES: Catalogue[Entry] = Catalogue(
    "network",
    [
        Entry(name, f"fewshot_gan.models.{module}:{name}")
        for module, names in {
            "mobile_stylegan": ("MobileStyleGANGenerator",),
            "stylegan2": ("StyleGAN2Generator", "StyleGAN2Discriminator"),
            "sngan": ("SNGANGenerator", "SNGANDiscriminator"),
            "biggan": ("BigGANGenerator", "BigGANDiscriminator"),
            "gp_gan": ("GPGANGenerator", "GPGANDiscriminator"),
            "tailored": ("TailoredGenerator",),
            "projected": ("ProjectedDiscriminator",),
            "latent_encoder": ("LatentEncoder",),
        }.items()
        for name in names
    ],
)


def register_method(name: str, title: str = "", arxiv: str | None = None) -> Callable[[type], type]:
    """Return a decorator that registers a `methods.method.Method` for command lines and model cards.

    Args:
        name, title, arxiv: see `Entry`.

    Raises:
        ValueError: when applied: another class has this name.
    """

    def register(cls: type) -> type:
        cls.name = name
        METHODS.add(MethodEntry(name, class_path(cls), title, arxiv))
        return cls

    return register


def register_adapter(
    title: str = "", arxiv: str | None = None, learning_rate: float | None = None, shown: tuple[str, ...] = ()
) -> Callable[[type], type]:
    """Return a decorator that registers an `adapters.Adapter` for trainings, saved files, model cards and PEFT's calls.

    Its name is the attribute `adapter_type` of the class.

    Args:
        title, arxiv: see `Entry`.
        learning_rate, shown: see `AdapterEntry`.

    Raises:
        ValueError: when applied: another class has this name.
    """

    def register(cls: type) -> type:
        trainable = getattr(cls, "trainable", True)
        ADAPTERS.add(AdapterEntry(cls.adapter_type, class_path(cls), title, arxiv, learning_rate, trainable, shown))
        return cls

    return register


def register_backbone(cls: type) -> type:
    """Register a `models.network.Network`, so that bases with it can be saved and loaded; use it as a decorator.

    Raises:
        ValueError: another class has the same name.
    """
    BACKBONES.add(Entry(cls.__name__, class_path(cls)))
    return cls


def class_path(cls: type) -> str:
    """Return "module:Class" of a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


_lock = RLock()
_plugins_loaded = False


def load_plugins() -> None:
    """Import the modules that entry points of the group "fewshot_gan.plugins" name, once per process.

    A plugin that cannot be imported is skipped with a warning, so that the rest of the package still works.
    """
    global _plugins_loaded
    with _lock:
        if _plugins_loaded:
            return
        _plugins_loaded = True
        for plugin in entry_points(group=GROUP):
            try:
                plugin.load()
            except Exception as error:  # a module of another package may raise anything
                logger.warning(
                    f"the plugin {plugin.name!r} ({plugin.value}) cannot be imported and is left out: "
                    f"{type(error).__name__}: {error}"
                )
