"""Published methods: one frozen config and one short function each."""
