"""Every failure a user can meet, as one small tree grouped by what the caller would do next.

InfnerfError                     exit code 1
├── SettingsError (ValueError)            2  a setting or a command-line value is wrong
├── DataError (ValueError)                3  the photos, poses or points cannot be used
│   ├── DatasetError                         the folder as a whole
│   │   └── NoPosesError                     there are none where they should be
│   ├── CameraError                          one camera or one pose
│   └── PhotoError                           one photo or mask
│       └── DamagedPhotoError                its contents are no whole picture, whoever decodes it
├── BudgetError (RuntimeError)            4  it does not fit the memory or disk that it was given
│   └── StorageFullError (OSError)           the disk is full
├── StoreError (RuntimeError)             5  the scene cannot be used as it is
│   ├── SceneNotFoundError (FileNotFoundError)
│   ├── StoreFormatError                     made by another format version
│   ├── UnreachableError (ConnectionError)   the server does not answer, or refuses
│   ├── DamagedStoreError                    something other than a node is damaged
│   └── DamagedNodeError                     one node, base or occupancy row is damaged
└── TrainingError (RuntimeError)          1  training cannot go on
    └── NonFiniteError (ArithmeticError)     NaN or infinity in a loss or a parameter

Messages name the thing, what was expected, what was got, and the next step.
"""


class InfnerfError(Exception):
    """Base of all failures that are not programming errors."""

    exit_code = 1


class SettingsError(InfnerfError, ValueError):
    """A setting, a flag or their combination is wrong."""

    exit_code = 2


class DataError(InfnerfError, ValueError):
    """The input data cannot be used."""

    exit_code = 3


class DatasetError(DataError):
    """The data set as a whole cannot be used."""


class NoPosesError(DatasetError):
    """There is no data set at the given place: no such folder, or no poses in it."""


class CameraError(DataError):
    """A camera model, its parameters or a pose cannot be used."""


class PhotoError(DataError):
    """A photo or a mask cannot be decoded or does not match its camera."""


class DamagedPhotoError(PhotoError):
    """A file was read as a whole, but its contents are no usable photo or mask: it fails the same wherever it is tried.

    A file that is gone, was changed or cannot be read just now is a plain PhotoError.
    """


class BudgetError(InfnerfError, RuntimeError):
    """The work does not fit the memory or the disk that it was given."""

    exit_code = 4


class StorageFullError(BudgetError, OSError):
    """Writing stopped because the disk is full; what was committed before is intact."""


class StoreError(InfnerfError, RuntimeError):
    """The scene store cannot be used as it is."""

    exit_code = 5


class SceneNotFoundError(StoreError, FileNotFoundError):
    """There is no scene at the given place."""


class StoreFormatError(StoreError):
    """The store was made by another format version."""


class UnreachableError(StoreError, ConnectionError):
    """What holds the scene cannot be reached, keeps failing or refuses; nothing is said about the scene itself."""


class DamagedStoreError(StoreError):
    """A part of the store that is needed as a whole is damaged or missing."""


class DamagedNodeError(StoreError):
    """One row (node, occupancy or base) is damaged or missing; the rest of the scene is usable."""


class TrainingError(InfnerfError, RuntimeError):
    """Training cannot go on."""


class NonFiniteError(TrainingError, ArithmeticError):
    """NaN or infinity turned up in a loss or a parameter."""
