"""python -m bot, and the command awq-bot."""

from bot.cli.interrupts import ended_by_ctrl_c


def main() -> None:
    with ended_by_ctrl_c():
        from bot.cli.app import main as run  # noqa: PLC0415 - loading it is what takes time
    run()


if __name__ == "__main__":
    main()
