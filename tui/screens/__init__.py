"""The screens: one module each, or a package where a screen has several views."""
