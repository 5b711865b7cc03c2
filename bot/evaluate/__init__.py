"""What the quantized model lost against its source: metrics, quality gate, plots."""
