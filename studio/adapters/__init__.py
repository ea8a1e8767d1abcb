"""The Adapters pages: versions, lineage, import and export."""
