"""The foundation of every page: access, guard, forms, errors, language, templates."""
