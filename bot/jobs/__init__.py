"""One release from decision to publication."""
