"""What ``msan bench`` measures: latency beside competitors, memory, the share of the device's peak, folders."""
