"""Ray itself: a session, a pool of actors that come and go, what failures mean, progress and metrics."""
