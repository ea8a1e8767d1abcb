"""The Datasets pages: folders of captioned pictures, uploads, captions."""
