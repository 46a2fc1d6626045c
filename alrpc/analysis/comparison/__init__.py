"""Analysis of a comparison of methods: summary, table and plots."""
