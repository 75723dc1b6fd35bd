"""Benchmarks: one question a file, answered by a JSON in results/ that names its command."""
