"""What the quantized model lost against its source: measured, judged, drawn."""
