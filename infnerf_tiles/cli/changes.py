"""Settings of a scene that a later command changes for itself."""

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.settings import Settings, load_settings


def changed_settings(
    command: str, scene: str, section: str, config: str | None, overrides: tuple[str, ...]
) -> Settings:
    """The settings stored in a scene, changed by --config and --set.

    section: the one section that `command` may change. SettingsError for a change outside of it, which would have no
    effect or contradict what the scene was built as; StoreError if there is no scene.
    """
    from infnerf_tiles.store.scene_store import SceneStore
    from infnerf_tiles.training.inputs import scene_settings

    with SceneStore.open(scene) as store:
        stored = scene_settings(store.header)
    changed = load_settings(config, overrides, base=stored)
    before, after = stored.model_dump(), changed.model_dump()
    refused = [
        f"{name}.{key}: {after[name][key]!r} instead of {before[name][key]!r}"
        for name in before
        if name != section
        for key in before[name]
        if before[name][key] != after[name][key]
    ]
    if refused:
        headline = f"{command}: expected changes of the section {section} only, got others; for those, build again"
        raise SettingsError("\n  ".join([headline, *refused]))
    return changed
