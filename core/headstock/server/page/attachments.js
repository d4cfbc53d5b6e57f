// Images that go with the next message: chosen, pasted or dropped; kept as data URLs.

import { make } from "./turn.js";

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

export class Attachments {
  constructor({ list, input, drop, onError }) {
    Object.assign(this, { list, onError });
    this.urls = [];
    input.addEventListener("change", async () => {
      await this.add(input.files);
      input.value = "";
    });
    drop.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) {
        event.preventDefault();
        this.add(event.clipboardData.files);
      }
    });
    drop.addEventListener("dragover", (event) => event.preventDefault());
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      this.add(event.dataTransfer.files);
    });
  }

  async add(files) {
    for (const file of [...files]) {
      if (!file.type.startsWith("image/")) {
        this.onError(`${file.name} is not an image.`);
        continue;
      }
      try {
        this.urls.push(await read(file));
      } catch (error) {
        this.onError(error.message);
      }
    }
    this.show();
  }

  // Returns the images, and forgets them.
  take() {
    const urls = this.urls;
    this.urls = [];
    this.show();
    return urls;
  }

  show() {
    this.list.hidden = !this.urls.length;
    this.list.replaceChildren(
      ...this.urls.map((url, index) => {
        const item = make("button", "attachment");
        item.type = "button";
        item.setAttribute("aria-label", `Leave image ${index + 1} out`);
        const image = make("img");
        image.src = url;
        image.alt = "";
        item.append(image);
        item.addEventListener("click", () => {
          this.urls.splice(index, 1);
          this.show();
        });
        return item;
      }),
    );
  }
}
