"""Posed photo collections: pose files, photos, masks and splits. numpy only, nothing here touches a device."""
